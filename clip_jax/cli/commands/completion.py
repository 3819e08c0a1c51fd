"""The verb `completion`: prints a script for completion in a shell.

The words to complete are read from the parsers, so that they are never out of
date: verbs, actions, flags, the fields of a config, and values where they are
few. Everything else is completed as a file name.
"""

import argparse
import dataclasses
import shlex

from clip_jax import config
from clip_jax.cli import flags, verb

_BASH = """\
_clip_jax() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
  local at=${COMP_WORDS[1]} words=
  # Bash parts --flag=value at the sign.
  if [[ $cur == = ]]; then cur=
  elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}
  fi
  case $at in
    @NESTED@) ((COMP_CWORD > 2)) && at="$at ${COMP_WORDS[2]}" ;;
  esac
  ((COMP_CWORD == 1)) && at='' prev=''
  case "$at $prev" in
@VALUES@
    *)
      case $at in
@WORDS@
      esac
      # Flags are offered to who begins one; else files are.
      [[ $cur == -* ]] || words=${words%% -*}
      ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  if [[ ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi
}
complete -o default -F _clip_jax clip-jax
"""
_ZSH = """\
#compdef clip-jax
_clip_jax() {
  local at=$words[2] before=$words[CURRENT-1]
  local -a plain given fields
  case $at in
    @NESTED@) ((CURRENT > 3)) && at="$at $words[3]" ;;
  esac
  ((CURRENT == 2)) && at=''
  if [[ $PREFIX == --*=* ]]; then
    before=${PREFIX%%=*}
    compset -P 1 '*='
  fi
  case "$at $before" in
@VALUES@
  esac
  case $at in
@WORDS@
  esac
  if [[ $PREFIX == -* ]]; then
    _describe -o option given
    if (($#fields)); then compadd -S '' -- $fields; fi
  elif (($#plain)); then
    _describe word plain
  else
    _files
  fi
}
if [[ $funcstack[1] == _clip-jax ]]; then
  _clip_jax "$@"
else
  compdef _clip_jax clip-jax
fi
"""


@dataclasses.dataclass(frozen=True)
class Command:
  """The words that may follow some first words, such as "data inspect"."""

  words: str
  plain: dict[str, str]  # Help by verb, action or value.
  options: list[argparse.Action]
  fields: list[str]  # Flags of config fields.
  has_actions: bool


def completion(arguments: argparse.Namespace) -> verb.Answer:
  """Prints the completion script of a shell."""
  script = _SCRIPTS[arguments.shell](_commands("", arguments.parser))
  return verb.Answer({"shell": arguments.shell, "script": script}, script)


def config_fields() -> list[str]:
  """Returns the names of all fields of a config."""
  return list(config.SCHEMA)


def _commands(words: str, parser: flags.Parser) -> list[Command]:
  plain = {
    name: (child.description or "").rstrip(".").replace("%%", "%")
    for name, child in parser.actions.items()
  }
  if not plain:
    for argument in parser.arguments:
      if not argument.option_strings:
        plain |= {str(value): "" for value in argument.choices or ()}
  fields = []
  if parser.takes_overrides:
    fields = [f"--config.{field}" for field in config_fields()]
  options = [each for each in parser.arguments if each.option_strings]
  nested = bool(words) and bool(parser.actions)
  found = [Command(words, plain, options, fields, nested)]
  for name, child in parser.actions.items():
    found += _commands(f"{words} {name}".strip(), child)
  return found


def _help(option: argparse.Action) -> str:
  return " ".join((option.help or "").replace("%%", "%").split())


def _values(option: argparse.Action) -> str:
  return " ".join(str(value) for value in option.choices or ())


def _filled(template: str, commands, values, words) -> str:
  nested = "|".join(c.words for c in commands if c.has_actions)
  for name, text in {
    "@NESTED@": nested,
    "@VALUES@": "\n".join(values),
    "@WORDS@": "\n".join(words),
  }.items():
    template = template.replace(name, text, 1)
  return template


def _patterns(command: Command, option: argparse.Action) -> str:
  return "|".join(
    shlex.quote(f"{command.words} {name}") for name in option.option_strings
  )


def _bash(commands: list[Command]) -> str:
  values, words = [], []
  for command in commands:
    names = [name for each in command.options for name in each.option_strings]
    names = [*command.plain, *names, *(f"{f}=" for f in command.fields)]
    listed = shlex.quote(" " + " ".join(names))
    words.append(f"        {shlex.quote(command.words)}) words={listed} ;;")
    for option in command.options:
      if option.nargs != 0:
        chosen = shlex.quote(_values(option))
        values.append(f"    {_patterns(command, option)}) words={chosen} ;;")
  return _filled(_BASH, commands, values, words)


def _zsh(commands: list[Command]) -> str:
  values, words = [], []
  for command in commands:
    options = {
      name: _help(each)
      for each in command.options
      for name in each.option_strings
    }
    lists = {
      "plain": [_described(*pair) for pair in command.plain.items()],
      "given": [_described(*pair) for pair in options.items()],
      "fields": [shlex.quote(f"{field}=") for field in command.fields],
    }
    filled = "; ".join(f"{n}=({' '.join(each)})" for n, each in lists.items())
    words.append(f"    {shlex.quote(command.words)}) {filled} ;;")
    for option in command.options:
      if option.nargs != 0:
        chosen = _values(option)
        do = f"compadd -- {chosen}" if chosen else "_files"
        values.append(f"    {_patterns(command, option)}) {do}; return ;;")
  return _filled(_ZSH, commands, values, words)


def _described(word: str, meaning: str) -> str:
  """Returns an entry for zsh's `_describe`, which splits it at the colon."""
  word = word.replace(":", "\\:")
  return shlex.quote(f"{word}:{meaning}" if meaning else word)


def _fish(commands: list[Command]) -> str:
  lines = []
  names = list(commands[0].plain)
  for command in commands:
    seen = [f"__fish_seen_subcommand_from {w}" for w in command.words.split()]
    if not command.words:
      seen = [f"not __fish_seen_subcommand_from {' '.join(names)}"]
    elif command.has_actions:
      inner = " ".join(command.plain)
      seen.append(f"not __fish_seen_subcommand_from {inner}")
    start = f"complete -c clip-jax -n {_fish_quoted('; and '.join(seen))}"
    lines += [
      f"{start} -f -a {_fish_quoted(word)} -d {_fish_quoted(meaning)}"
      for word, meaning in command.plain.items()
    ]
    for option in command.options:
      flags_ = " ".join(
        f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
        for name in option.option_strings
      )
      takes = "" if option.nargs == 0 else " -r"
      if chosen := _values(option):
        takes = f" -x -a {_fish_quoted(chosen)}"
      lines.append(f"{start} {flags_}{takes} -d {_fish_quoted(_help(option))}")
    lines += [f"{start} -l {field[2:]} -r" for field in command.fields]
  return "\n".join(lines) + "\n"


def _fish_quoted(text: str) -> str:
  return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
