import pytest

from companion.files import atomic_path


def test_takes_the_place_of_the_file_only_when_the_block_ends(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("before", ["old", None])
def test_a_block_that_raises_leaves_the_folder_as_it_was(tmp_path, before):
    path = tmp_path / "notes.txt"
    if before is not None:
        path.write_text(before)

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    kept = {} if before is None else {"notes.txt": before}
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == kept
