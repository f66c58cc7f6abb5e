BY_FORMULA = "mamba_ssm by formula"
def use(model): raise NotImplementedError
