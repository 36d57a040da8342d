"""Trained prompts on disk: written atomically, and checked completely when they are loaded.

``SCHEMA`` is the version of the manifest that this softprompt writes and reads.
"""

from softprompt._io import write_atomically
from softprompt.artifact.artifact import (
    Artifact,
    ManifestFields,
    check_backbone,
    describe_backbone,
    make_artifact,
)
from softprompt.artifact.manifest import SCHEMA, BackboneRef, Manifest
from softprompt.artifact.store import load_artifact, save_artifact

__all__ = [
    "SCHEMA",
    "Artifact",
    "BackboneRef",
    "Manifest",
    "ManifestFields",
    "check_backbone",
    "describe_backbone",
    "load_artifact",
    "make_artifact",
    "save_artifact",
    "write_atomically",
]
