# Python sees nothing of this module: its interface is bitmap.pxd.
