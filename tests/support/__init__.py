"""Helpers that tests import: ``from support.tiny_models import make_backbone``.

A conftest holds fixtures and nothing else; helpers that several tests need are here.
"""
