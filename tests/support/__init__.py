"""Helpers that tests import: ``from support.tiny_models import make_backbone``.

A conftest holds fixtures and nothing else; whatever two tests need stands here once.
"""
