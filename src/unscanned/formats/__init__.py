"""What is written to disk and must be readable for years: for each kind of file one schema, with its version.

docs/formats.md says what is promised. A key that a later version adds has a default here: what older versions did.
"""
