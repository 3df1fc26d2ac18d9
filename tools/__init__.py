"""The ``kqcap`` command. Installed as ``kqcap_tools`` (also ``python -m kqcap_tools``); from a checkout:
``python -m tools``."""
