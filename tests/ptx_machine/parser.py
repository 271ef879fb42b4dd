"""Parses PTX text. Labels become indices of instructions, and register names become unique across scopes."""

import re
from dataclasses import dataclass, field

# The numpy dtype that holds a PTX type.
DTYPES = {"pred": "b1", "f16": "f2", "f32": "f4", "f64": "f8"}
DTYPES |= {f"{t}{bits}": f"{'i' if t == 's' else 'u'}{bits // 8}" for t in "bus" for bits in (8, 16, 32, 64)}


class PtxError(Exception):
    """PTX that the machine does not support. The message names the line."""


@dataclass(frozen=True)
class Address:
    """`[base + offset]`, where base is a register or a symbol."""

    base: str
    offset: int


@dataclass
class Instruction:
    """Operands are names of registers and symbols, immediates as text, `Address`, and tuples of these for vectors.

    `source` is the position in the Python source as file:line.
    """

    opcode: str
    operands: list
    predicate: str | None
    negated: bool
    line: int
    source: str
    parts: list[str] = field(init=False)  # of the opcode

    def __post_init__(self):
        self.parts = self.opcode.replace("::", "_").split(".")


@dataclass
class Kernel:
    """An entry function. `labels` are indices into `instructions`."""

    name: str
    params: list[tuple[str, str]]  # name, PTX type
    threads: int
    instructions: list[Instruction]
    labels: dict[str, int]
    widths: dict[str, int]  # bytes of each register, 0 for predicates
    shared: dict[str, int]  # bytes of each shared memory symbol, 0 for dynamic shared memory


def immediate(text: str) -> int | None:
    """The value of an integer, or the bits of a float such as 0f3F800000; None if the text is neither."""
    if bits := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", text):
        return int(bits[1] or bits[2], 16)
    match = re.fullmatch(r"(-?)(0[xX][0-9a-fA-F]+|\d+)U?", text)
    return None if match is None else int(match[2], 0 if "x" in match[2].lower() else 10) * (-1 if match[1] else 1)


def parse(text: str) -> Kernel:
    """Parses a module that consists of one entry function."""
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"/\*.*?\*/", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
    entries = list(re.finditer(r"\.entry\s+(\w+)\s*\(([^)]*)\)([^{]*)\{", text))
    if len(entries) != 1:
        raise PtxError(f"a module must have one .entry, got {len(entries)}")
    if re.search(r"\.func\b", text):
        raise PtxError("a module must have no .func")
    entry = entries[0]
    declarations = [declaration.split() for declaration in entry[2].split(",") if declaration.strip()]
    params = [(words[-1], words[1].removeprefix(".")) for words in declarations]
    threads = int(re.search(r"\.reqntid\s+(\d+)", entry[3])[1])
    symbols = re.findall(r"\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)\[(\d*)\]", text)
    shared = {name: int(size or 0) for name, size in symbols}
    files = re.findall(r'\.file\s+(\d+)\s+"[^"]*?([^"/]+)"', text)
    body = _Body(text, entry.end(), {int(index): name for index, name in files})
    body.read()
    return Kernel(entry[1], params, threads, body.instructions, body.labels, body.widths, shared)


class _Body:
    """Reads the statements of an entry function, from just after its opening brace through its closing brace."""

    def __init__(self, text: str, position: int, files: dict[int, str]):
        self.text, self.position, self.files = text, position, files
        self.line, self.line_position = text.count("\n", 0, position) + 1, position
        self.source = "?"
        self.scopes: list[dict[str, str]] = [{}]  # {name: unique name} of the registers of each open scope
        self.ranges: dict[str, int] = {}  # {prefix: bytes} of registers declared as %r<N>
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.widths: dict[str, int] = {}

    def read(self) -> None:
        while self.scopes:
            self._statement()

    def _statement(self) -> None:
        start = re.compile(r"\s*").match(self.text, self.position).end()
        self.line += self.text.count("\n", self.line_position, start)
        self.position = self.line_position = start
        if self.text[start] == "{":
            self.position += 1
            self.scopes.append({})
        elif self.text[start] == "}":
            self.position += 1
            self.scopes.pop()
        elif self.text.startswith(".loc", start):
            file, line = self._until("\n").replace(",", " ").split()[1:3]
            self.source = f"{self.files.get(int(file), file)}:{line}"
        elif self.text[start] == ".":
            self._directive(self._until(";"))
        elif label := re.compile(r"([$\w]+):").match(self.text, start):
            self.labels[label[1]] = len(self.instructions)
            self.position = label.end()
        else:
            self._instruction(" ".join(self._until(";").split()))

    def _until(self, end: str) -> str:
        start, stop = self.position, self.text.index(end, self.position)
        self.position = stop + 1
        return self.text[start:stop]

    def _directive(self, text: str) -> None:
        match = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text, flags=re.DOTALL)
        if match is None:
            if not text.startswith(".pragma"):
                raise PtxError(f"line {self.line}: unsupported directive: {text}")
            return
        width = 0 if match[1] == "pred" else int(DTYPES[match[1]][1])
        for name in map(str.strip, match[2].split(",")):
            if several := re.fullmatch(r"(%\w+)<\d+>", name):
                self.ranges[several[1]] = width
            else:
                unique = f"{name}_{len(self.widths)}_"
                self.scopes[-1][name] = unique
                self.widths[unique] = width

    def _instruction(self, text: str) -> None:
        match = re.fullmatch(r"(?:@(!?)(%?\w+)\s+)?([a-z][\w.:]*)\s*(.*)", text)
        if match is None:
            raise PtxError(f"line {self.line}: syntax error: {text}")
        operands = [self._operand(word) for word in _split(match[4])]
        predicate = self._name(match[2]) if match[2] else None
        self.instructions.append(Instruction(match[3], operands, predicate, match[1] == "!", self.line, self.source))

    def _operand(self, word: str):
        if word.startswith("{"):
            return tuple(self._operand(element) for element in _split(word[1:-1]))
        if word.startswith("["):
            match = re.fullmatch(r"\[\s*([%$\w.]+)\s*(?:\+\s*(-?\w+)|(-\s*\w+))?\s*\]", word)
            if match is None:
                raise PtxError(f"line {self.line}: unsupported address: {word}")
            return Address(self._name(match[1]), int((match[2] or match[3] or "0").replace(" ", ""), 0))
        if "|" in word:
            return tuple(self._operand(element.strip()) for element in word.split("|"))
        return self._name(word)

    def _name(self, word: str) -> str:
        """The unique name of a register; other words are returned unchanged."""
        for scope in reversed(self.scopes):
            if word in scope:
                return scope[word]
        match = re.fullmatch(r"(%[a-zA-Z_]+)\d+", word)
        if match is not None and match[1] in self.ranges:
            self.widths.setdefault(word, self.ranges[match[1]])
        return word


def _split(text: str) -> list[str]:
    """Splits at commas outside of braces and brackets."""
    words, depth = [""], 0
    for char in text:
        depth += (char in "{[") - (char in "}]")
        if char == "," and depth == 0:
            words.append("")
        else:
            words[-1] += char
    return [word.strip() for word in words if word.strip()]
