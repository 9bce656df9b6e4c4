"""How image data are named, and every way to write it wrong."""

import pytest

from ablations.values import data_parts
from runners.data.image_specs import OWN, ImageSpec, is_image_spec, own_class, parse_image_spec


def test_a_comma_before_an_option_belongs_to_the_data_before_it():
    text = "digit-vote,imagefolder:/a,split=0.1, norm=data,timm:hfds/x,root=/r,val_split=test,mine.data:Mine,mean=0/0/0"
    assert data_parts(text) == [
        "digit-vote",
        "imagefolder:/a,split=0.1,norm=data",
        "timm:hfds/x,root=/r,val_split=test",
        "mine.data:Mine,mean=0/0/0",
    ]


def test_what_is_named():
    assert parse_image_spec("imagefolder:/a b/c,split=0.25") == ImageSpec(root="/a b/c", split=0.25)
    assert parse_image_spec("imagefolder:train=/a.tar,val=/b,norm=data") == ImageSpec(
        train="/a.tar", val="/b", norm="data"
    )
    assert parse_image_spec("timm:torch/cifar10,root=/r,download=on,val_split=test") == ImageSpec(
        kind="timm", name="torch/cifar10", root="/r", download=True, val_split="test"
    )
    assert parse_image_spec("lab.data:Mine,mean=0.5/0.4/0.3,std=1/1/1") == ImageSpec(
        kind=OWN, name="lab.data:Mine", mean=(0.5, 0.4, 0.3), std=(1, 1, 1)
    )
    assert parse_image_spec("timm:wds/x,root=/r,train_split=x-{0..3}.tar|8,input_key=png;jpg") == ImageSpec(
        kind="timm", name="wds/x", root="/r", train_split="x-{0..3}.tar|8", input_key="png;jpg"
    )
    assert own_class("lab.data:Mine,norm=data") == "lab.data:Mine"
    assert [own_class(spec) for spec in ("digit-vote:jitter=3", "imagefolder:data", "timm:torch/x")] == [None] * 3


def test_probes_are_no_images():
    assert not any(map(is_image_spec, ("digit-vote", "digit-vote:jitter=3", "fashion-mnist", "digit_vote:jitter=3")))


WRONG = {
    "imagefolder:": "must name one place",
    "imagefolder:/a,train=/b,val=/c": "must name one place",
    "imagefolder:train=/b": "must name train and val",
    "imagefolder:train=/b,val=/c,split=0.1": "split divides one folder",
    "imagefolder:/a,split=1": "split=1 must be a share between 0 and 1",
    "imagefolder:/a,split=nan": "split=nan must be a share",
    "imagefolder:/a,splits=0.1": "'splits=0.1' is not one of train=, val=, split=",
    "imagefolder:/a,split=0.1,split=0.2": "each once",
    "imagefolder:/a,mean=0.5": "mean=0.5 must be three numbers",
    "imagefolder:/a,std=0/1/1": "std=0/1/1 must be three numbers",
    "imagefolder:/a,norm=own": "norm=own must be imagenet or data",
    "imagefolder:/a,norm=data,mean=0/0/0": "leave out mean= and std=",
    "imagefolder:/a,download=on": "'download=on' is not one of",
    "timm:": "must name a data set",
    "timm:torch/cifar10,download=yes": "download=yes must be on or off",
    "timm:hfids/lab/X": "hfids/ is a stream, which a training cannot go on from in its middle; timm:hfds/lab/X reads",
    "timm:wds/x": "wds/ needs root=PATH",
    "timm:WDS/x,root=/a,download=on": "leave out download=on",
    "timm:imagenet,root=/a": "a folder or a tar is imagefolder:PATH",
    "timm:torch/mnist,root=/a,input_key=img": "input_key and target_key are of hfds/, tfds/ and wds/",
    "lab:Mine,split=0.1": "'split=0.1' is not one of norm=, mean=, std=",
}


@pytest.mark.parametrize("spec", WRONG)
def test_what_is_written_wrong_is_said_in_one_line(spec):
    with pytest.raises(ValueError) as caught:
        parse_image_spec(spec)
    assert WRONG[spec] in str(caught.value) and repr(spec) in str(caught.value)
    assert "\n" not in str(caught.value)
