"""Photos of phones, HEIC: Pillow reads them where the package pillow-heif is installed."""

from importlib.util import find_spec

SUFFIXES = (".heic", ".heif")
INSTALL = "pip install 'hf-segkd[heic]'"


def is_readable() -> bool:
    """Whether pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def register() -> None:
    """Let Pillow read HEIC in this process, upright, where pillow-heif is installed."""
    if is_readable():
        import pillow_heif

        pillow_heif.register_heif_opener()
