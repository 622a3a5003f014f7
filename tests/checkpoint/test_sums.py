import random

from prenorm.checkpoint.sums import BLOCK, sums_of


def test_the_sums_of_a_block_show_what_disks_and_memory_do_to_it():
    draw = random.Random(0)
    for block in (draw.randbytes(BLOCK), bytes(BLOCK), draw.randbytes(4096) * 256):

        def shown(changed, block=block):
            whole = memoryview(bytearray(changed))
            return sums_of(whole, len(block)) != sums_of(memoryview(bytearray(block)), len(block))

        assert not shown(block)
        for _ in range(50):  # a bit, some bytes within 4 KiB, a sector of zeros or of another place
            place, length = draw.randrange(len(block)), draw.choice((1, 2, 8, 512, 4088))
            end = min(place + length, len(block))
            damaged = bytearray(block)
            damaged[place] ^= 1 << draw.randrange(8)
            assert shown(damaged)
            damaged[place:end] = draw.randbytes(end - place)
            assert shown(damaged) == (damaged != block)
        a, b = draw.sample(range(256), 2)
        rows = [block[4096 * row : 4096 * row + 4096] for row in range(256)]
        rows[a], rows[b] = rows[b], rows[a]
        assert shown(b"".join(rows)) == (rows[a] != rows[b])
        assert shown(bytes(4096) + block[4096:]) == (block[:4096] != bytes(4096))
        assert shown(block[1:] + block[:1]) == (len(set(block)) > 1)


def test_what_lies_behind_the_end_of_a_file_counts_as_zeros():
    ends = [memoryview(bytearray(b"1234" + end * (BLOCK - 4))) for end in (b"?", b"\0")]
    assert len({sums_of(end, 4) for end in ends}) == 1
