"""Redirect drivers: how a host is detoured, on each kind of main storage. Importing this package registers them."""
from detour.redirect import ctld, detour, hook, initiator, lio, portal, scst, spdk, tgt
from detour.redirect.base import REGISTRY, RedirectDriver, VolumeContext, make_driver

__all__ = ["REGISTRY", "RedirectDriver", "VolumeContext", "ctld", "detour", "hook", "initiator", "lio", "make_driver",
           "portal", "scst", "spdk", "tgt"]
