"""The conformance checks behind `bench check`: plain functions, shipped with the package, called by
its own tests too.
"""
