"""Pages that commands make are as the code is now, and the README points at what is there."""

import re

import pytest

from foveate.cli.list import FAMILIES, hosts_of, methods, page
from foveate.cli.main import VERBS


def test_the_page_of_methods_is_current(root):
    assert (root / "docs" / "methods.md").read_text() == page(methods(hosts_of([FAMILIES]))), (
        "run: foveate list --markdown > docs/methods.md"
    )


@pytest.mark.fast
def test_links_of_the_readme_and_the_docs_lead_somewhere(root):
    for text in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)\)", text.read_text()):
            assert (text.parent / target).exists(), f"{text.name}: {target}"


@pytest.mark.fast
def test_commands_of_the_readme_are_verbs(root):
    verbs = re.findall(r"`foveate (\w+)", (root / "README.md").read_text())
    assert verbs and set(verbs) <= set(VERBS)
