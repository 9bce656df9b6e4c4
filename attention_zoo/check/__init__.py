"""The contract of a mechanism as checks: `python -m attention_zoo.check package.module:Class`.

The tests run every check over every registered mechanism; `resolve` runs a short form of it on what a user brings.
"""
