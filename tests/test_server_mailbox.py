"""Outcomes from threads for an event loop's futures."""

import asyncio
import threading

from jaxpool.server.mailbox import Mailbox


def test_many_outcomes_wake_a_loop_once():
    async def scenario():
        loop, mailbox = asyncio.get_running_loop(), Mailbox()
        futures = [loop.create_future() for _ in range(100)]
        woken = []
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *arguments: (woken.append(arguments), wake(*arguments))

        def work():
            for number, future in enumerate(futures):
                mailbox.put(future, ValueError("odd") if number % 2 else number)
            mailbox.deliver()
            mailbox.deliver()  # nothing is left

        threading.Thread(target=work).start()
        found = await asyncio.gather(*futures, return_exceptions=True)
        return found, woken

    found, woken = asyncio.run(scenario())
    assert found[::2] == list(range(0, 100, 2))
    assert {str(error) for error in found[1::2]} == {"odd"}
    assert len(woken) == 1


def test_who_no_longer_waits_is_passed_over():
    async def scenario():
        mailbox, gone, other = Mailbox(), *(asyncio.get_running_loop().create_future() for _ in range(2))
        gone.cancel()
        mailbox.put(gone, 1)
        mailbox.put(other, 2)
        mailbox.deliver()
        return await other

    assert asyncio.run(scenario()) == 2


def test_several_loops_and_one_that_is_closed():
    closed = asyncio.new_event_loop()
    lost = closed.create_future()
    closed.close()

    async def scenario():
        mine = asyncio.get_running_loop().create_future()
        mailbox.put(lost, 1)
        mailbox.put(mine, 2)
        mailbox.deliver()
        return await mine

    mailbox = Mailbox()
    assert asyncio.run(scenario()) == 2
    assert not lost.done()


def test_from_many_threads():
    async def scenario():
        loop, mailbox = asyncio.get_running_loop(), Mailbox()
        futures = [loop.create_future() for _ in range(400)]

        def work(part):
            for future in futures[part::4]:
                mailbox.put(future, part)
                mailbox.deliver()

        threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        return await asyncio.gather(*futures)

    assert asyncio.run(asyncio.wait_for(scenario(), 30)) == [i % 4 for i in range(400)]
