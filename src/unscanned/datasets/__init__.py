"""Scans in folders and tables: found, paired, checked, split, downloaded."""
