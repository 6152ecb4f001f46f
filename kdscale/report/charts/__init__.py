"""Drawings as SVG that follows the page's colours, each with its words and its values as a table.

Own code rather than a plotting library's SVG: lines take their colours from the page's style sheet,
so that one drawing is right in light and dark; each is drawn for a wide and for a narrow screen, as
scaling would make the letters of one of them too small or too large; and a page stays below 1 MB.
"""
