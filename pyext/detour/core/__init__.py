"""The compiled data path of detour: everything that runs per I/O, without the GIL."""
