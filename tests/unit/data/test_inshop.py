import layouts
import pytest

from udmlss import metrics
from udmlss.data import inshop


def test_query_and_gallery_give_the_same_item_the_same_label(tmp_path):
    root = layouts.inshop(tmp_path)
    query, gallery = inshop(root, "query"), inshop(root, "gallery")
    assert query.classes == gallery.classes == ["id_00000007", "id_00000004"]
    assert (query.labels.tolist(), gallery.labels.tolist()) == ([1, 0], [0, 1])
    for part in (query, gallery):
        assert [path.parent.name for path in part.paths] == [part.classes[label] for label in part.labels]


def test_training_counts_its_own_items_from_0(tmp_path):
    train = inshop(layouts.inshop(tmp_path), "train")
    assert train.classes == ["id_00000002", "id_00000009"]
    assert train.labels.tolist() == [0, 0, 1]
    assert [train[index][0].getpixel((0, 0))[0] for index in range(3)] == [0, 1, 6]


def test_the_splits_score_as_queries_and_gallery(tmp_path):
    root = layouts.inshop(tmp_path)
    query, gallery = inshop(root, "query"), inshop(root, "gallery")
    one_hot = [part.labels[:, None].eq(part.labels.unique()).float() for part in (query, gallery)]
    found = metrics.recall_at_k(one_hot[1], gallery.labels, (1,), queries=one_hot[0], query_labels=query.labels)
    assert found == {1: 1.0}


@pytest.mark.parametrize("eval_folder", ["Eval", "."])
@pytest.mark.parametrize("image_folder", ["Img", "."])
@pytest.mark.parametrize("above", ["In-shop Clothes Retrieval Benchmark", "."])
def test_the_list_and_the_pictures_may_lie_where_people_unpack_them(tmp_path, eval_folder, image_folder, above):
    layouts.inshop(tmp_path / above, eval_folder=eval_folder, image_folder=image_folder)
    assert len(inshop(tmp_path, "train")) == 3


@pytest.mark.parametrize("place", ["img.zip", "Img/img.zip"])
def test_an_archive_that_is_not_unpacked_is_met_with_the_line_that_unpacks_it(tmp_path, to_device):
    (tmp_path / "Img").mkdir()
    (tmp_path / to_device).touch()
    with pytest.raises(ValueError, match=r"with Eval/list_eval_partition\.txt or .*python -m udmlss\.data inshop"):
        inshop(tmp_path, "train")


def test_a_list_of_another_length_than_it_says_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"partition\.txt must be the number of images, got '8' and 7 images"):
        inshop(layouts.inshop(tmp_path, count=8), "train")


def test_a_list_without_its_two_first_lines_is_refused(tmp_path):
    path = layouts.inshop(tmp_path) / "Eval" / "list_eval_partition.txt"
    layouts.lines(path, path.read_text().splitlines()[2:])
    with pytest.raises(ValueError, match=r"Line 2 of .* must be image_name item_id evaluation_status, got 'img/"):
        inshop(tmp_path, "train")


def test_another_part_than_the_three_is_refused_with_its_line(tmp_path):
    root = layouts.inshop(tmp_path, rows=(("id_00000001", "train"), ("id_00000002", "val")))
    with pytest.raises(ValueError, match=r"Each line of .* must be image_name .*, got .*val' in line 4"):
        inshop(root, "train")


def test_an_image_in_both_query_and_gallery_is_refused(tmp_path):
    path = layouts.inshop(tmp_path) / "Eval" / "list_eval_partition.txt"
    text = path.read_text()
    query = next(line for line in text.splitlines() if line.endswith("query"))
    path.write_text("8" + text[1:] + query.replace("query", "gallery"))
    with pytest.raises(ValueError, match=r"Each name must stand once in .*, got 1 of 8 there again, the first is img/"):
        inshop(tmp_path, "gallery")


def test_a_picture_that_is_not_there_is_named_at_once(tmp_path):
    gone = inshop(layouts.inshop(tmp_path), "gallery").paths[0]
    gone.unlink()
    with pytest.raises(ValueError, match=rf"must be there, got 1 of 2 missing, the first is {gone}"):
        inshop(tmp_path, "gallery")
    assert len(inshop(tmp_path, "query")) == 2
