"""Sphinx's settings for the site, whose sources `build.py` puts together."""

from __future__ import annotations

from typing import Any

import public  # beside build.py, which reads this

import fastopt

project = "fastopt"
version = release = fastopt.__version__
copyright = "the authors of fastopt"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "myst_parser"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

html_theme = "furo"
html_title = f"fastopt {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

#: Anchors of headings as GitHub makes them, which links between pages name.
myst_heading_anchors = 4

autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # what a method of a base does is said there
autodoc_typehints = "none"  # docstrings say it in words and shapes
default_role = "py:obj"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
suppress_warnings = ["misc.highlighting_failure"]  # of code with … in it


def skip(app: Any, what: str, name: str, value: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out what fastopt alone calls, what scikit-learn gives its estimators, names of types, and fields of tuples,
    which the class describes."""
    is_request = name.startswith("set_") and name.endswith("_request")
    is_internal = public.is_method(value) and public.qualified(value) in public.INTERNAL
    is_type = what == "class" and isinstance(value, type)
    return True if is_request or is_internal or is_type or type(value).__name__ == "_tuplegetter" else None


def public_bases(app: Any, name: str, value: type, options: Any, bases: list[Any]) -> None:
    """The bases that say something."""
    bases[:] = public.bases(value)


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-bases", public_bases)
