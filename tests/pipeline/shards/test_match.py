"""A planned clip stands for the clip of a manifest with the same id and audio."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pipeline.manifest.manifest import SCHEMA, Clip, from_clips
from pipeline.shards.match import match
from pipeline.storage.stored_table import StoredTable
from tests.support.preparation import LABELS

clips = st.builds(
    Clip,
    id=st.sampled_from("abcdef"),
    uri=st.sampled_from(["/1", "/2"]),
    labels=st.just(()) | st.just(("dog",)),
    start_s=st.none() | st.just(1.0),
    row_group=st.none() | st.just(0),
)


@given(
    planned=st.lists(clips, max_size=12),
    listed=st.lists(clips, max_size=6, unique_by=lambda clip: clip.id),
)
def test_clips_match_by_id_and_audio_and_only_the_last_is_used(
    planned: list[Clip], listed: list[Clip]
) -> None:
    def audio(clip: Clip) -> Clip:
        return replace(clip, labels=())

    known = [audio(clip) for clip in listed]
    expected = [known.index(audio(clip)) if audio(clip) in known else -1 for clip in planned]
    for place, row in enumerate(expected):
        if row in expected[place + 1 :]:
            expected[place] = -1
    now = from_clips(listed, LABELS).clips
    assert match(from_clips(planned, LABELS).clips, now).tolist() == expected
    on_disk = StoredTable(SCHEMA)
    for clip in planned:
        on_disk.append(from_clips([clip], LABELS).clips)
    assert match(on_disk, now).tolist() == expected
