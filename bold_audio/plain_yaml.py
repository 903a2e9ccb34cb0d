"""YAML of people nobody knows, as plain values: nothing is made or run, and a few lines stay a few lines."""

import yaml


class NamedTwice(yaml.constructor.ConstructorError):
    """A name with two values."""


class _PlainLoader(yaml.SafeLoader):
    """Plain values without aliases, of which a few lines unfold to gigabytes."""

    def construct_mapping(self, node, deep=False):
        """Refuse a name that stands twice, of which yaml takes the last without a word."""
        seen = set()
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            if key.value in seen:
                raise NamedTwice(None, None, f"{key.value} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent, index):
        """Refuse an alias, read all else as YAML does."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not read", self.peek_event().start_mark)
        return super().compose_node(parent, index)


def read_yaml(text):
    """Plain values from YAML.

    Raises
    ------
    yaml.YAMLError
        If the text is not YAML, is nested without end, or has aliases, a name twice, or values that cannot be.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError:
        raise
    except Exception as error:  # yaml lets out what a 13th month, !!bool maybe or thousands of brackets raise in it
        raise yaml.YAMLError(str(error)) from error
