"The anchor of a heading, spelled as nbdev spells it in the links that it makes."
import re


def slug(title:str) -> str:
    "`Run.finish` → `run.finish`; docutils' own anchors would lose the dot and the underscore"
    return re.sub(r'[^\w.-]', '', re.sub(r'\s+', '-', title.strip().lower()))
