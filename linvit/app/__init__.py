"""The web page: drop an image, compare models, click a pixel and see where they look.

It is served by Python's own HTTP server on this machine alone, and fetches nothing from elsewhere: the page is three
files beside this one.
"""
