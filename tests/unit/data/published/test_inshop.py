import layouts
import pytest

from udmlss import metrics
from udmlss.data import inshop


def test_training_labels_start_at_0(tmp_path):
    train = inshop(layouts.inshop(tmp_path), "train")
    assert train.classes == ["id_00000002", "id_00000009"]
    assert train.labels.tolist() == [0, 0, 1]
    assert [train[index][0].getpixel((0, 0))[0] for index in range(3)] == [0, 1, 6]


def test_queries_and_gallery_have_common_labels(tmp_path):
    root = layouts.inshop(tmp_path)
    query, gallery = inshop(root, "query"), inshop(root, "gallery")
    assert query.classes == gallery.classes == ["id_00000007", "id_00000004"]
    assert (query.labels.tolist(), gallery.labels.tolist()) == ([1, 0], [0, 1])
    one_hot = [split.labels[:, None].eq(split.labels.unique()).float() for split in (query, gallery)]
    found = metrics.recall_at_k(one_hot[1], gallery.labels, (1,), queries=one_hot[0], query_labels=query.labels)
    assert found == {1: 1.0}


@pytest.mark.parametrize("eval_folder", ["Eval", "."])
@pytest.mark.parametrize("image_folder", ["Img", "."])
def test_the_list_and_the_images_may_be_in_subfolders(tmp_path, eval_folder, image_folder):
    layouts.inshop(tmp_path, eval_folder=eval_folder, image_folder=image_folder)
    assert len(inshop(tmp_path, "train")) == 3


def test_rejects_a_list_with_another_number_of_images(tmp_path):
    with pytest.raises(ValueError, match=r"partition\.txt must be the number of images, got '8' and 7 images"):
        inshop(layouts.inshop(tmp_path, count=8), "train")


def test_rejects_a_list_without_its_first_two_lines(tmp_path):
    path = layouts.inshop(tmp_path) / "Eval" / "list_eval_partition.txt"
    layouts.write_lines(path, path.read_text().splitlines()[2:])
    with pytest.raises(ValueError, match=r"Line 2 of .* must be image_name item_id evaluation_status, got 'img/"):
        inshop(tmp_path, "train")


def test_rejects_an_unknown_split_in_the_list(tmp_path):
    root = layouts.inshop(tmp_path, rows=(("id_00000001", "train"), ("id_00000002", "val")))
    with pytest.raises(ValueError, match=r"Each line of .* must be image_name .*, got .*val' in line 4"):
        inshop(root, "train")


def test_rejects_an_image_in_both_queries_and_gallery(tmp_path):
    path = layouts.inshop(tmp_path) / "Eval" / "list_eval_partition.txt"
    text = path.read_text()
    query = next(line for line in text.splitlines() if line.endswith("query"))
    path.write_text("8" + text[1:] + query.replace("query", "gallery"))
    with pytest.raises(ValueError, match=r"must be unique, got 1 repeated in 8 lines, the first is img/"):
        inshop(tmp_path, "gallery")
