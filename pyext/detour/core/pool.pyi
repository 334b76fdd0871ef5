# pool has nothing that Python sees; its functions are for cimport.
