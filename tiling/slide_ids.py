"""What a slide may be called. Ids become names of files and folders, parts of addresses, and cells of spreadsheets.

Any text of 1 to MOST_BYTES bytes of UTF-8 whose characters can all be printed, a space among them, and that Linux,
macOS and Windows all store as a file's name: without / \\ : * ? " < > |, without a space or dot at either end, and no
device of Windows (CON, NUL, COM1 …), with or without an ending. It does not start with = + - @, which a spreadsheet
takes for a formula that it runs, and a shell for a flag. Two ids of one table differ in more than case.

Unicode writes one letter in several ways, and macOS changes which: ids are in the composed form (NFC).
"""

import re
import unicodedata

MOST_BYTES = 200  # file names have 255; the rest is for endings, locks and temporary files
_FORBIDDEN = frozenset('/\\:*?"<>|')
_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³]) *(\..*)?", re.IGNORECASE)
_FORMULA = tuple("=+-@")


def in_one_form(name: str) -> str:
    """The id that a name gives."""
    return unicodedata.normalize("NFC", name)


def caseless(name: str) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def fault_of(name: str) -> str:
    """Why `name` is no id, as what follows it in a sentence; empty where it is one."""
    unprintable = " ".join(f"U+{ord(character):04X}" for character in sorted(set(name)) if not character.isprintable())
    forbidden = " ".join(repr(character) for character in sorted(_FORBIDDEN & set(name)))
    if not name:
        return "is empty"
    if unprintable:
        return f"has characters that cannot be printed ({unprintable})"
    if forbidden:
        return f"has {forbidden}, which not every file system allows"
    if name.strip(" .") != name:
        return "starts or ends with a space or a dot"
    if _DEVICE.fullmatch(name):
        return "is a device on Windows"
    if unicodedata.normalize("NFKC", name).startswith(_FORMULA):
        return f"starts with {name[0]!r}, which a spreadsheet takes for a formula"
    if (size := len(name.encode())) > MOST_BYTES:
        return f"is {size} bytes long, {MOST_BYTES} are the most"
    return ""
