"""Redirect drivers: how a host is detoured, on each kind of main storage. Importing this package registers them."""
from detour.redirect import ctld, detour, hook, initiator, lio, scst, spdk, tgt
from detour.redirect.base import REGISTRY, RedirectDriver, VolumeContext, make_driver

__all__ = ["REGISTRY", "RedirectDriver", "VolumeContext", "ctld", "detour", "hook", "initiator", "lio", "make_driver",
           "scst", "spdk", "tgt"]
