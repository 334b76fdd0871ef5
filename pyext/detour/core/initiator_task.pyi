# Tasks of the initiator are for the core alone (cimport detour.core.initiator_task); Python sees nothing of them.
