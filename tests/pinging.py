"""MoDeST's protocol of pings in plain Python, for the tests of membership and of the system."""


def pinged(hash, members, alive, s):
    """The protocol in words: ask as many as are missing, wait, ask on."""
    order = [i for i in sorted(range(len(hash)), key=lambda i: (hash[i], i)) if members[i]]
    found, asked, waits = [], 0, 0
    while len(found) < s and asked < len(order):
        batch = order[asked : asked + s - len(found)]
        asked += len(batch)
        found += [i for i in batch if alive[i]]
        waits += not all(alive[i] for i in batch)
    return found, asked, waits
