"""What older releases of other packages cannot do: the tests that are skipped there, and why."""

from importlib.metadata import version

from packaging.version import Version

# Part of a test's id; package; first release that is known to do it; reason.
NEWER = (
    ("oneformer", "transformers", "5.23", "OneFormer's image processor needs a file that the Hub holds"),
    ("Wrong type in the fields of 'segformer'", "transformers", "5.23", "types of a config are not checked"),
    (
        "a_saved_folder_works_without_this_package",
        "transformers",
        "5.23",
        "warns of image processors without a fast one",
    ),
    ("for_any_size", "torch", "2.13", "torch.export binds networks to odd or even sizes"),
    ("pictures_in_an_archive_are_checked", "datasets", "5.0", "pictures in an archive have one column alone"),
    ("a_missing_member_of_an_archive", "datasets", "5.0", "pictures in an archive have one column alone"),
)


def reason_to_skip(test: str) -> str | None:
    """Why this test is skipped with the installed releases; `None` if it is not."""
    for part, package, first, reason in NEWER:
        if part in test and Version(version(package)) < Version(first):
            return f"{package} before {first}: {reason}"
    return None
