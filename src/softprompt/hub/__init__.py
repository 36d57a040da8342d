"""Sharing artifacts on the Hub: push and pull, with a model card."""

from softprompt.hub.repository import PullResult, PushResult, pull, pull_to_cache, push

__all__ = ["PullResult", "PushResult", "pull", "pull_to_cache", "push"]
