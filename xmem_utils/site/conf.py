"""Sphinx's configuration: pages that need no network, neither when they are built nor when they are read."""

project = "xmem"
author = copyright = "The xmem authors"
extensions = ["myst_nb"]
exclude_patterns = ["_build"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]  # needs a kernel
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]
html_theme = "sphinx_book_theme"
html_title = "xmem: cross-modality memorization"
html_static_path = ["_static"]
html_favicon = "_static/people/0.png"
html_copy_source = html_show_sourcelink = False
html_theme_options = {"use_download_button": False, "use_fullscreen_button": False, "show_toc_level": 2}
html_context = {"default_mode": "light"}
html_sidebars = {"**": ["navbar-logo.html", "sbt-sidebar-nav.html"]}  # the search is above
