from pileus.kernel.eui64 import slaac_address


def test_an_address_is_made_of_prefix_and_mac_address_as_rfc_4291_shows() -> None:
    assert slaac_address("2001:db8::/64", "34:56:78:9a:bc:de") == "2001:db8::3656:78ff:fe9a:bcde"
    assert slaac_address("fd00:1::/64", "02:00:00:00:00:01") == "fd00:1::ff:fe00:1"


def test_an_address_in_the_network_will_do_for_its_prefix() -> None:
    assert slaac_address("fd00:1::7/64", "02:00:00:00:00:01") == "fd00:1::ff:fe00:1"
