"""Trained prompts on disk: saved whole or not at all, and checked before anything is read.

``SCHEMA`` is the version of the manifest that this softprompt writes and reads.
"""

from softprompt.artifact.aside import aside
from softprompt.artifact.manifest import SCHEMA, BackboneName, Manifest
from softprompt.artifact.store import load, save
from softprompt.artifact.value import Artifact, Origin, assemble, check_backbone, name_of

__all__ = [
    "SCHEMA",
    "Artifact",
    "BackboneName",
    "Manifest",
    "Origin",
    "aside",
    "assemble",
    "check_backbone",
    "load",
    "name_of",
    "save",
]
