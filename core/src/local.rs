//! Both engine traits on one machine.
