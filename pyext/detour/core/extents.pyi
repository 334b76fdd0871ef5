# Python sees nothing of this module: its interface is extents.pxd.
