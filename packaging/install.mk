# Where things go: the program and its plug-in side by side in lib, so that it finds it, and a link to it in bin.
PREFIX     ?= /usr/local
SYSCONFDIR ?= $(if $(filter /usr,$(PREFIX)),/etc,$(PREFIX)/etc)
DESTDIR    ?=
INSTALLED   = bin/moebius lib/moebius share/man/man1/moebius.1 share/doc/moebius share/bash-completion/completions/moebius \
              lib/systemd/system/moebius.service

.PHONY: install install-files uninstall deb
install: $(BUILD)/moebius $(PLUGIN)
	@+$(MAKE) --no-print-directory install-files

# Where a file goes, as a word of the shell: a blank in DESTDIR must not name another folder, least of all one to remove.
to = "$(DESTDIR)$(PREFIX)/$(1)"
settings = "$(DESTDIR)$(SYSCONFDIR)/moebius$(1)"

# What is built, as it is.
install-files:
	install -d $(call to,bin) $(call to,lib/moebius) $(call settings)
	install -s $(BUILD)/moebius $(PLUGIN) $(call to,lib/moebius)
	ln -sfn ../lib/moebius/moebius $(call to,bin/moebius)
	packaging/man.sh $(BUILD)/moebius >$(BUILD)/moebius.1
	install -Dm644 $(BUILD)/moebius.1 $(call to,share/man/man1/moebius.1)
	install -Dm644 LICENSE $(call to,share/doc/moebius/copyright)
	install -Dm644 NOTICE $(call to,share/doc/moebius/NOTICE)
	install -Dm644 packaging/moebius.bash $(call to,share/bash-completion/completions/moebius)
	sed 's#@PREFIX@#$(PREFIX)#; s#@SYSCONFDIR@#$(SYSCONFDIR)#' packaging/moebius.service >$(BUILD)/moebius.service
	install -Dm644 $(BUILD)/moebius.service $(call to,lib/systemd/system/moebius.service)
	test -e $(call settings,/moebius.conf) || install -m600 packaging/moebius.conf $(call settings,/moebius.conf)

# The settings stay.
uninstall:
	rm -rf $(foreach file,$(INSTALLED),$(call to,$(file)))

deb: $(BUILD)/moebius $(PLUGIN)
	@packaging/deb.sh $(BUILD) $(VERSION)
