# Framing is for the core alone (cimport detour.core.pdu); Python sees nothing of it.
