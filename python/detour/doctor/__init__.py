"""`detour doctor`: everything that a detour needs, checked before it is needed. Nothing on main is changed.

    findings (what a check answers) <- on_main, on_gateway, on_stores (the checks) <- checkup (which, in which order)
"""
from detour.doctor.checkup import examine
from detour.doctor.findings import Case, Finding, State, documents, worst

__all__ = ["Case", "Finding", "State", "documents", "examine", "worst"]
