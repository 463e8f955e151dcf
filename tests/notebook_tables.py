"""Reads the tables that results show in a notebook."""

import html
import re


def rows(text):
    """The cells of each row of all tables, without markup."""
    found = []
    for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL):
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        found.append([html.unescape(cell.replace("<br>", " ")) for cell in cells])
    return found
