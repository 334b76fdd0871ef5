# Connections are for the core alone (cimport detour.core.conn); Python sees nothing of them.
