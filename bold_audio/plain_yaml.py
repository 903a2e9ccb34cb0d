"""YAML of people nobody knows, as plain values: nothing is made or run, and a few lines stay a few lines."""

import yaml


class _PlainLoader(yaml.SafeLoader):
    """Plain values without aliases, of which a few lines unfold to gigabytes."""

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
        If the text is not YAML, is nested without end, or has aliases or values that cannot be.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError:
        raise
    except Exception as error:  # yaml lets out what a 13th month, !!bool maybe or thousands of brackets raise in it
        raise yaml.YAMLError(str(error)) from error
