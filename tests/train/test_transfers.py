"""Copies on a device: whole, only when they have to travel, and never stale."""

import gc

import pytest
import torch

from biggraph.model.relations import RelationParameters
from biggraph.train.transfers import Ferry, Loan, Residence
from tests.train.test_device_step import on_gpu


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def where(request):
    return torch.device("cpu") if request.param == "cpu" else on_gpu()


class Counting(Ferry):
    """A ferry that notes what it brings."""

    brought = 0

    def bring(self, host):
        self.brought += 1
        return super().bring(host)


@pytest.mark.parametrize("shape", [(0,), (1,), (8, 2), (5, 7), (33, 3), (6, 4, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_a_tensor_returns_as_it_went(shape, dtype, where):
    ferry = Ferry(where, buffer=64)  # so that pieces are many, and the last one is short
    host = torch.randint(-(2**30), 2**30, shape).to(dtype)
    here = ferry.bring(host)
    assert here.device.type == where.type
    back = torch.zeros_like(host)
    ferry.fetch(here, back)
    assert torch.equal(back, host)
    here.zero_()
    assert host.numel() == 0 or bool(host.any())  # a copy, also on the processor


def test_slices_of_one_tensor_travel_alone(where):
    ferry, whole = Ferry(where, buffer=64), torch.arange(40.0).view(10, 4)
    here = ferry.bring(whole[2:7])
    here += 100
    ferry.fetch(here, whole[2:7])
    wanted = torch.arange(40.0).view(10, 4)
    wanted[2:7] += 100
    assert torch.equal(whole, wanted)


def test_what_the_next_bucket_needs_too_stays(where):
    ferry = Counting(where)
    residence, (a, b, c) = Residence(ferry), torch.arange(12.0).view(3, 4).clone().split(1)
    a, b, c = a.clone(), b.clone(), c.clone()
    residence.bring([a, b])
    residence.save()
    here_a, _ = residence.bring([a, c])
    assert ferry.brought == 3
    here_a += 1
    residence.save()
    assert a.tolist() == [[1, 2, 3, 4]]
    residence.bring([b])  # left when c came
    assert ferry.brought == 4


def test_what_changed_in_main_memory_travels_again(where):
    ferry = Counting(where)
    residence, a = Residence(ferry), torch.zeros(3)
    residence.bring([a])
    residence.save()
    a[:1] += 5
    (here,) = residence.bring([a])
    assert here.tolist() == [5, 0, 0]


def test_a_bucket_that_was_given_up_leaves_nothing(where):
    residence, a = Residence(Ferry(where)), torch.zeros(3)
    (here,) = residence.bring([a])
    here += 7
    (again,) = residence.bring([a])  # not saved: training failed
    assert again.tolist() == [0, 0, 0]
    residence.save()
    assert a.tolist() == [0, 0, 0]


def test_a_table_that_left_main_memory_is_not_kept(where):
    residence, a = Residence(Ferry(where)), torch.zeros(3)
    residence.bring([a])
    residence.save()
    del a
    gc.collect()
    assert len(residence._here) == 0


def test_a_loan_adds_what_changed_here_to_what_changed_there(where):
    owner = RelationParameters({"0.lhs.x": torch.tensor([[1.0, 2.0]])})
    loan = Loan(owner, Ferry(where))
    here = loan.bring()
    assert loan.find(owner.values["0.lhs.x"]) is here.values["0.lhs.x"]
    assert loan.find(torch.zeros(1)) is None
    here.values["0.lhs.x"] += 10
    here.sums["0.lhs.x"] += 0.5
    owner.values["0.lhs.x"] += 100
    loan.give_back()
    assert owner.values["0.lhs.x"].tolist() == [[111.0, 112.0]]
    assert owner.sums["0.lhs.x"].tolist() == [[0.5, 0.5]]


def test_an_exchange_adds_both_ways_and_once(where):
    owner = RelationParameters({"0.lhs.x": torch.tensor([[1.0, 2.0]])})
    loan = Loan(owner, Ferry(where))
    here = loan.bring().values["0.lhs.x"]
    assert loan.nbytes == 16
    for _ in range(3):
        here += 10
        owner.values["0.lhs.x"] += 100
        loan.exchange()
        assert here.tolist() == owner.values["0.lhs.x"].tolist()  # the same tensor as before
    loan.give_back()
    assert owner.values["0.lhs.x"].tolist() == [[331.0, 332.0]]
