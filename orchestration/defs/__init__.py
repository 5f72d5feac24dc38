"""Every module here is loaded; one that holds a ``Definitions`` object would lose its loose assets silently."""
