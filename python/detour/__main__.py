"""`python -m detour` is `detour`."""
from detour.cli.main import main

if __name__ == "__main__":
    main()
