"""The network's memories of a system whose rounds have several kinds of messages, as one."""

from jaxfl.core import Mail


def joined(*mails: Mail) -> Mail:
    """The memories of all kinds."""
    return Mail(tuple(m.nodes for m in mails), tuple(m.shared for m in mails))


def parted(mail: Mail) -> list[Mail]:
    """What `joined` joins."""
    return [Mail(nodes, shared) for nodes, shared in zip(mail.nodes, mail.shared, strict=True)]
