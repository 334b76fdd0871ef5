"""detour: point-in-time backup of a live iSCSI volume, by detouring its host through a gateway."""

__version__ = "0.1.0"
