# Nothing of this module is seen by Python: it is for cimport.
