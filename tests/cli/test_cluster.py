"""``softprompt compare --engine ray``: on a cluster as here, whatever becomes of a worker."""

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import psutil
import pytest
import torch

from softprompt.cli import cluster as clusters
from softprompt.cli.cluster import Cluster, Needs, connected
from softprompt.cli.errand import Begun, errand_of, run_errand
from softprompt.cli.runs import Runs
from softprompt.compare import Exam, Failed, Job, Protocol, Searched, method_arms
from softprompt.data import read_rows
from softprompt.errors import MissingPackageError, TrainingError
from softprompt.recipe import read_recipe

# Before Ray is imported: it is to talk over the loopback alone, and tell nobody that it was used.
os.environ.update(
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_memory_monitor_refresh_ms="0",  # the tests' own machine may be as full as it likes
)

SECONDS = 60
