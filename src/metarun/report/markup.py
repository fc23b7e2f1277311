"""Words as cells of Markdown and LaTeX, whatever they say."""

# Of LaTeX, whose other characters need no care. After the end of a row it takes a bracket or a star for a setting of that end.
_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
_LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "[": "{[}", "*": "{*}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " "}


def of_markdown(text: str) -> str:
    """`text` as a cell of a table of GitHub's Markdown."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def of_latex(text: str) -> str:
    """`text` as LaTeX that prints it."""
    return "".join(_LATEX.get(character, character) for character in text)
